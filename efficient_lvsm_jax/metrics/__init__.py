"""How far two results are apart: PSNR, SSIM, LPIPS, VGG19."""
