"""Parts of `cavmae evaluate`."""
