"""Search spaces: operations, the supernet, genotypes, losses."""
