package maps

import (
	"fmt"
	"math/bits"
	"net/netip"

	"github.com/bermedge/berm/bpf"
)

const (
	trieStride = 6
	trieLevels = 8 // (64 - 16) / trieStride
)

// buildTrie turns the segments into the root array and the nodes below it.
func (t *PrefixTable) buildTrie() error {
	rest := t.segments6
	for slot := range t.root {
		first := uint64(slot) << 48
		last := first | (1<<48 - 1)
		var inside []segment6
		inside, rest = cut(rest, first, last)
		if id, ok := uniform(inside, first, last); ok {
			t.root[slot] = uint64(id)
			continue
		}
		node, err := t.node(inside, first, 0)
		if err != nil {
			return err
		}
		at, err := t.storeNodes([]bpf.XDPBermPrefix6Node{node})
		if err != nil {
			return err
		}
		t.root[slot] = prefix6NodeBit | uint64(at)
	}
	return nil
}

// cut splits off the segments that touch a range; one that reaches beyond stays in the rest too.
func cut(segments []segment6, first, last uint64) (inside, rest []segment6) {
	from := 0
	for from < len(segments) && segments[from].last < first {
		from++
	}
	to := from
	for to < len(segments) && segments[to].first <= last {
		to++
	}
	rest = segments[to:]
	if to > from && segments[to-1].last > last {
		rest = segments[to-1:]
	}
	return segments[from:to], rest
}

// uniform says whether all of a range has the same record, and which.
func uniform(inside []segment6, first, last uint64) (uint16, bool) {
	switch {
	case len(inside) == 0:
		return 0, true
	case len(inside) == 1 && inside[0].first <= first && inside[0].last >= last:
		return inside[0].id, true
	}
	return 0, false
}

// node builds the node of a range, with all that is below it. It goes from segment to segment,
// not from branch to branch: most nodes hold one or two.
func (t *PrefixTable) node(segments []segment6, base uint64, level int) (bpf.XDPBermPrefix6Node, error) {
	var n bpf.XDPBermPrefix6Node
	var kids [64]bpf.XDPBermPrefix6Node
	var leaves [64]uint16
	kidCount, leafCount := 0, 0
	leaf := func(branch uint64, id uint16) {
		if leafCount == 0 || leaves[leafCount-1] != id {
			n.Leaves |= 1 << branch
			leaves[leafCount] = id
			leafCount++
		}
	}
	shift := 64 - 16 - trieStride*(level+1)
	size := uint64(1) << shift
	for branch, rest := uint64(0), segments; branch < 64; {
		first := base + branch*size
		if len(rest) == 0 {
			leaf(branch, 0)
			break
		}
		s := rest[0]
		end := min(s.last-base, 64*size-1) // of the segment, within this node
		switch {
		case s.first > first && (s.first-base)>>shift > branch: // a hole
			leaf(branch, 0)
			branch = (s.first - base) >> shift
		case s.first <= first && end >= (branch+1)*size-1: // whole branches of one record
			leaf(branch, s.id)
			branch = (end + 1) >> shift
			if end < branch*size {
				rest = rest[1:]
			}
		default:
			var inside []segment6
			inside, rest = cut(rest, first, first+(size-1))
			kid, err := t.node(inside, first, level+1)
			if err != nil {
				return n, err
			}
			n.Kids |= 1 << branch
			kids[kidCount] = kid
			kidCount++
			branch++
		}
	}
	var err error
	if n.LeafBase, err = t.storeLeaves(leaves[:leafCount]); err != nil {
		return n, err
	}
	n.KidBase, err = t.storeNodes(kids[:kidCount])
	return n, err
}

func (t *PrefixTable) storeNodes(run []bpf.XDPBermPrefix6Node) (uint32, error) {
	at, ok := t.nodeAt.store(&t.nodes, run, prefix6Nodes)
	if !ok {
		return 0, fmt.Errorf("prefix table: IPv6 needs more than %d trie nodes: %w (use a database with fewer or shorter IPv6 prefixes)", prefix6Nodes, ErrFull)
	}
	return at, nil
}

func (t *PrefixTable) storeLeaves(run []uint16) (uint32, error) {
	at, ok := t.leavesAt.store(&t.leaves, run, prefix6Leaves)
	if !ok {
		return 0, fmt.Errorf("prefix table: IPv6 needs more than %d trie leaves: %w (use a database with fewer IPv6 prefixes)", prefix6Leaves, ErrFull)
	}
	return at, nil
}

// Lookup does what the kernel half does with a source's address. The table must be finished.
func (t *PrefixTable) Lookup(a netip.Addr) PrefixRecord {
	a = a.Unmap()
	if a.Is4() {
		n := be32(a)
		leaf := t.leaves4[leaf4(t.cells4[n>>13], n)]
		if leaf&prefix4Block != 0 {
			leaf = t.blocks[int(leaf&^prefix4Block)*blockSize+int(n&0xff)]
		}
		return t.records[leaf]
	}
	hi, _ := halves(a)
	at := t.root[hi>>48]
	for level := 0; at&prefix6NodeBit != 0; level++ {
		next, leaf, isLeaf := descend(&t.nodes[at&^prefix6NodeBit], hi, level)
		if isLeaf {
			return t.records[t.leaves[leaf]]
		}
		at = prefix6NodeBit | uint64(next)
	}
	return t.records[at]
}

// descend takes one step in the trie: to a node, or to a leaf.
func descend(n *bpf.XDPBermPrefix6Node, hi uint64, level int) (node, leaf uint32, isLeaf bool) {
	branch := hi >> (64 - 16 - trieStride*(level+1)) & 63
	if n.Kids>>branch&1 != 0 {
		return n.KidBase + uint32(bits.OnesCount64(n.Kids&(1<<branch-1))), 0, false
	}
	return 0, n.LeafBase + uint32(bits.OnesCount64(n.Leaves&(^uint64(0)>>(63-branch)))) - 1, true
}
