"""Ways to carry out a solve."""
