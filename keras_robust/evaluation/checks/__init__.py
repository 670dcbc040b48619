"""What must hold if the failure of an attack means that the model is robust."""
