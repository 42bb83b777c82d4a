"""Pictures without cameras: photos and films, structure from motion, what becomes of them."""
