"""One file a task type, found by the name that `task.type` gives in params.yaml."""
