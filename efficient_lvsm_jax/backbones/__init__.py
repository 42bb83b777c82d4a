"""Pretrained networks that others build on or look through: ViT, DINOv2, DINOv3."""
