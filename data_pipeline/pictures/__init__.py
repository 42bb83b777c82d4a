"""One picture decoded, undistorted, resized."""
