"""What one does with a trained hierarchy."""
