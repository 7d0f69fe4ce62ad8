"""The training loop, which every task shares."""
