"""The two-stage job of one workdir, from base model to exported model and report."""
