"""Networks: plain `nn.Module`s, one file each."""
