"""Everything around the model: data sets, metrics, run folders, pictures. Knows nothing of DFDNet or of the loss."""
