"""Parts of a training: models and weights to start from, optimizers, schedules, checkpoints, run folders."""
