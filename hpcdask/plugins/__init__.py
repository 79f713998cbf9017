"""Code of users that runs when something happens on scheduler, workers and nannies."""
