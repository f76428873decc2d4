"""What happens inside the sampling loop: four mechanisms, two services, and the methods made of them."""
