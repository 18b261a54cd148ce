"""When and where the stages run. The graph itself stands in dvc.yaml."""
