package maps

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
)

// RowCount is the number of rows in a backend set's table.
const RowCount = 65537

const rowCells = 32769 // BERM_ROW_CELLS: two rows of 32 bits each

// Row says who owns the flows that hash to it, and who gets them when the owner cannot.
type Row struct {
	Owner  uint16 `json:"owner"` // backend id, below 4096; 0 = nobody
	Second uint16 `json:"second"`
	// Moved says that the second has owned the row, and may have flows of it: the owner asks its
	// sockets, and gives what it has none for a second chance there.
	Moved bool `json:"moved"`
}

const (
	rowBackend = 0xfff   // BERM_ROW_BACKEND
	rowMoved   = 1 << 31 // BERM_ROW_MOVED
)

func (r Row) encode() uint32 {
	v := uint32(r.Owner&rowBackend) | uint32(r.Second&rowBackend)<<16
	if r.Moved {
		v |= rowMoved
	}
	return v
}

func decodeRow(v uint32) Row {
	return Row{Owner: uint16(v & rowBackend), Second: uint16(v >> 16 & rowBackend), Moved: v&rowMoved != 0}
}

// Rows is every backend set's table.
type Rows struct {
	set *Set
	w   *window
}

// cells are the rows of a set, each in a half of a 64-bit cell: low half first.
func (r *Rows) cells(set uint32) []uint32 {
	words := r.w.words()[int(set)*rowCells:][:rowCells]
	return unsafe.Slice((*uint32)(unsafe.Pointer(unsafe.SliceData(words))), RowCount)
}

// Write makes table the rows of a set. Each row changes in one store; rows that stay are not touched.
func (r *Rows) Write(set uint32, table []Row) error {
	if set == 0 || set >= r.count() {
		return fmt.Errorf("rows of set %d: want 1 to %d", set, r.count()-1)
	}
	if len(table) != RowCount {
		return fmt.Errorf("rows of set %d: %d rows, want %d", set, len(table), RowCount)
	}
	return r.set.lock.hold(func() error {
		cells := r.cells(set)
		for i, row := range table {
			if v := row.encode(); atomic.LoadUint32(&cells[i]) != v {
				atomic.StoreUint32(&cells[i], v)
			}
		}
		return nil
	})
}

// Read returns the rows of a set.
func (r *Rows) Read(set uint32) ([]Row, error) {
	if set == 0 || set >= r.count() {
		return nil, fmt.Errorf("rows of set %d: want 1 to %d", set, r.count()-1)
	}
	return r.read(set), nil
}

func (r *Rows) read(set uint32) []Row {
	table := make([]Row, RowCount)
	cells := r.cells(set)
	for i := range table {
		v := atomic.LoadUint32(&cells[i])
		table[i] = decodeRow(v)
	}
	return table
}

func (r *Rows) count() uint32 { return uint32(len(r.w.words()) / rowCells) }

// Sets is the table of backend sets' names.
type Sets struct {
	set *Set
	m   *ebpf.Map
}

// BackendSet is a group of backends that share the flows of their VIPs.
type BackendSet struct {
	ID    uint32 `json:"id"` // given by the table; 0 is this host
	Name  string `json:"name"`
	Owner Owner  `json:"owner"`
}

func (s *Sets) table() named[bpf.XDPBermSet] {
	return named[bpf.XDPBermSet]{s.m, "backend set", func(e *bpf.XDPBermSet) string {
		if e.Used == 0 {
			return ""
		}
		return fromName(e.Name)
	}}
}

func (s *Sets) ids() (map[string]uint32, error) { return s.table().ids() }

// List returns all sets, by id.
func (s *Sets) List() ([]BackendSet, error) {
	entries, err := s.table().entries()
	if err != nil {
		return nil, err
	}
	var list []BackendSet
	for id := 1; id < len(entries); id++ {
		if e := &entries[id]; e.Used != 0 {
			list = append(list, BackendSet{ID: uint32(id), Name: fromName(e.Name), Owner: Owner(e.Owner)})
		}
	}
	return list, nil
}

// Put adds a set, or changes the owner of the one of this name. A new set's rows name nobody.
func (s *Sets) Put(v BackendSet) (uint32, error) {
	if err := CheckName(v.Name); err != nil {
		return 0, fmt.Errorf("backend set: %w", err)
	}
	var id uint32
	err := s.set.lock.hold(func() error {
		var exists bool
		var err error
		if id, _, exists, err = s.table().place(v.Name); err != nil {
			return err
		}
		if !exists {
			clear(s.set.Rows.cells(id))
		}
		return put(s.m, id, bpf.XDPBermSet{Name: toName(v.Name), Used: 1, Owner: uint8(v.Owner)})
	})
	return id, err
}

// Remove takes away a set that no VIP names, and its rows.
func (s *Sets) Remove(name string) error {
	return s.set.lock.hold(func() error {
		id, _, err := s.table().find(name)
		if err != nil {
			return err
		}
		users, err := s.set.VIPs.users(func(r *bpf.XDPBermVip) bool {
			return uint32(r.Set) == id || uint32(r.CarrySet) == id || uint32(r.SpillSet) == id
		})
		if err != nil {
			return err
		}
		if users != "" {
			return fmt.Errorf("backend set %q: %w by VIP %s", name, ErrInUse, users)
		}
		clear(s.set.Rows.cells(id))
		return put(s.m, id, bpf.XDPBermSet{})
	})
}
