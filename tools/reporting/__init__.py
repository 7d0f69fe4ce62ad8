"""What the page of `cavmae report` is made of."""
