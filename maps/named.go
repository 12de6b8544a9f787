package maps

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// named reads an array map whose entries carry names: policies, classes, sets, backends.
// Entry 0 always means "none".
type named[T any] struct {
	m    *ebpf.Map
	kind string
	name func(*T) string // "" when the entry is not used
}

func (t named[T]) entries() ([]T, error) { return all[T](t.m) }

func (t named[T]) ids() (map[string]uint32, error) {
	list, err := t.entries()
	if err != nil {
		return nil, err
	}
	ids := make(map[string]uint32)
	for id := 1; id < len(list); id++ {
		if name := t.name(&list[id]); name != "" {
			ids[name] = uint32(id)
		}
	}
	return ids, nil
}

// place finds the entry of this name, or a free one.
func (t named[T]) place(name string) (id uint32, old T, exists bool, err error) {
	list, err := t.entries()
	if err != nil {
		return 0, old, false, err
	}
	var free uint32
	for id := 1; id < len(list); id++ {
		switch t.name(&list[id]) {
		case name:
			return uint32(id), list[id], true, nil
		case "":
			if free == 0 {
				free = uint32(id)
			}
		}
	}
	if free == 0 {
		return 0, old, false, fmt.Errorf("%s %q: %d exist: %w (remove one that is not used)", t.kind, name, len(list)-1, ErrFull)
	}
	return free, old, false, nil
}

// find finds the entry of this name, or ErrNotFound.
func (t named[T]) find(name string) (uint32, T, error) {
	id, v, exists, err := t.place(name)
	if err == nil && !exists {
		err = fmt.Errorf("%s %q: %w", t.kind, name, ErrNotFound)
	}
	return id, v, err
}
