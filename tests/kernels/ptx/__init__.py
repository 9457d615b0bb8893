"""An emulator of NVIDIA GPUs for the PTX that Triton compiles our kernels to, in NumPy.

Runs a compiled kernel on the CPU, all thread blocks at once, on the memory of CPU tensors: so that what the compiler
made of a kernel is checked where no GPU is, unlike in Triton's interpreter. Layouts, masks, barriers, asynchronous
copies and tensor-core products are those of the compiled program. Accesses outside tensors and races raise errors.
Instructions that are not emulated are refused by name. Rounding follows IEEE, so the last bits of approximate functions
and of sums in tensor cores may differ from a GPU's.
"""
