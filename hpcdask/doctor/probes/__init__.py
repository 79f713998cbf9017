"""Looking at this host: one file per subject, each with a function that returns its facts."""
