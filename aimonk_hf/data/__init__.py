"""Labels and images: reading, checking, dividing, drawing."""
