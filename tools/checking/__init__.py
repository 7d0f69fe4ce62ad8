"""Parts of `cavmae check`: verification, statistics and contact sheets."""
