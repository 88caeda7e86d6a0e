"""Run directories, and what is made of them."""
