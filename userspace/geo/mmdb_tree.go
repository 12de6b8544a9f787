package geo

import (
	"errors"
	"fmt"
)

// maxNetworks bounds what a database may list; the largest country databases have a hundredth.
const maxNetworks = 1 << 26

// checkTree looks at the search tree of a database in MaxMind's format before it is walked along.
// A damaged one may contain itself, and a walk would visit 2^128 networks. raw begins with the
// tree: nodes of two records each, a record being a node, nothing (nodes) or data (above).
func checkTree(raw []byte, nodes, recordBits uint) error {
	size := recordBits / 4
	if recordBits != 24 && recordBits != 28 && recordBits != 32 || nodes == 0 || uint(len(raw))/size < nodes {
		return errors.New("the search tree is cut short")
	}
	const open, unknown = -1, 0 // of a node: being counted; not seen
	networks := make([]int32, nodes)
	for stack := []uint32{0}; len(stack) > 0; {
		at := stack[len(stack)-1]
		if networks[at] > 0 {
			stack = stack[:len(stack)-1]
			continue
		}
		sum, waits := int64(1), false // 1: a node is never unknown once counted
		for _, kid := range records(raw[uint(at)*size:], recordBits) {
			switch {
			case uint(kid) >= nodes:
				sum++
			case networks[kid] > 0:
				sum += int64(networks[kid])
			case networks[kid] == open:
				return fmt.Errorf("the search tree contains itself at node %d", kid)
			default:
				waits = true
				stack = append(stack, kid)
			}
		}
		networks[at] = open
		if waits {
			continue
		}
		if sum > maxNetworks {
			return fmt.Errorf("the search tree lists more than %d networks", maxNetworks)
		}
		networks[at] = int32(sum)
		stack = stack[:len(stack)-1]
	}
	return nil
}

// records are the left and the right one of a node.
func records(b []byte, bits uint) [2]uint32 {
	be24 := func(b []byte) uint32 { return uint32(b[0])<<16 | uint32(b[1])<<8 | uint32(b[2]) }
	switch bits {
	case 24:
		return [2]uint32{be24(b), be24(b[3:])}
	case 28:
		return [2]uint32{uint32(b[3]>>4)<<24 | be24(b), uint32(b[3]&15)<<24 | be24(b[4:])}
	}
	return [2]uint32{uint32(b[0])<<24 | be24(b[1:]), uint32(b[4])<<24 | be24(b[5:])}
}
