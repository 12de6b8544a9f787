package maps

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// all reads every entry of an array map, in batches where the kernel has them.
func all[T any](m *ebpf.Map) ([]T, error) {
	n := int(m.MaxEntries())
	keys, values := make([]uint32, n), make([]T, n)
	var cursor ebpf.MapBatchCursor
	got := 0
	for got < n {
		c, err := m.BatchLookup(&cursor, keys[got:], values[got:], nil)
		got += c
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			if got != n {
				return nil, fmt.Errorf("read %s: %d of %d entries", m.String(), got, n)
			}
			return values, nil
		case err != nil:
			return nil, fmt.Errorf("read %s: %w", m.String(), err)
		}
	}
	return values, nil
}

func put[T any](m *ebpf.Map, id uint32, v T) error {
	if err := m.Put(id, &v); err != nil {
		return fmt.Errorf("write entry %d of %s: %w", id, m.String(), err)
	}
	return nil
}
