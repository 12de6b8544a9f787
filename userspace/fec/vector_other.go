//go:build !amd64

package fec

func mulAdd(factors []byte, symbols *[ways][]byte, row []byte, n int) {
	mulAddPortable(factors, symbols, row, n)
}
