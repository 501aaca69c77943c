"""Certificates of the hardware's makers, as published by them; what makes them roots is the code that pins them."""
