"""One module a stage; the file's name is the stage's name in dvc.yaml and its section in params.yaml."""
