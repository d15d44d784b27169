"""The page of a result: one HTML file that shows what a solver does to a model."""
