"""Labels and pictures: reading, checking, dividing, drawing."""
