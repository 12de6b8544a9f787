package fec

import "golang.org/x/sys/cpu"

// mulAdd is mulAddPortable, three times as fast where the processor has instructions for it: the library's kernels that use them
// allocate at each call.
func mulAdd(factors []byte, symbols *[ways][]byte, row []byte, n int) {
	if !cpu.X86.HasAVX512GFNI || n == 0 {
		mulAddPortable(factors, symbols, row, n)
		return
	}
	var by [ways]uint64 // what has no factor counts as nothing
	var in [ways]*byte
	for i, s := range symbols {
		in[i] = &s[:n][0]
	}
	table := bits()
	for i, c := range factors {
		by[i] = table[c]
	}
	mulAddGFNI(&by, &in, &row[:n][0], n)
}

//go:noescape
func mulAddGFNI(by *[ways]uint64, in *[ways]*byte, row *byte, n int)
