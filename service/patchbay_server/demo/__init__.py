"""`patchbay demo`: a small ViT trained on real digits, four full fine-tunes of it, and what Patchbay makes of them."""
