"""The pipeline as a package of Kubeflow Pipelines, its tasks, and a dry run of it."""
