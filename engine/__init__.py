"""What all methods share inside the sampling loop, and ComfyUI lacks.

A method puts entries on a model: an extra prediction, a layer on attentions, a term on features, or partner rows. This
package carries them out in each call of the model, together with batches, other packs, hooks and context windows. It
knows no paper and names no method.
"""
