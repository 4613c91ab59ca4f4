"""The networks that ship and what they compute: encoder, verifier, cloud mask, local descriptors."""
