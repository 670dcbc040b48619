"""What is known of the model under test."""
