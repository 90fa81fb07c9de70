"""What the cases share: timing, figures and their page, real processes, models and batches."""
