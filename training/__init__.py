"""How the embedded models and the small trainings were made: `python -m training STAGE` makes them anew."""
