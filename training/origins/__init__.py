"""Small trainings, each with one change: what makes a channel massive? Notebook 05 reads what they found."""
