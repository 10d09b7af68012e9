"""Using a trained model elsewhere."""
