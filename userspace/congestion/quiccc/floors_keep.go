package quiccc

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/congestion"
	"github.com/bermedge/berm/userspace/congestion/controller"
)

// The floors outlive the daemon in a file of its state directory.
const (
	floorsFile = "quic-floors.json"
	floorsKey  = 16 // bytes
)

type floorsState struct {
	Key      []byte       `json:"key"`
	Prefixes []floorState `json:"prefixes"`
}

type floorState struct {
	Prefix  netip.Prefix  `json:"prefix"`
	Clients []clientState `json:"clients"`
}

type clientState struct {
	Client uint64    `json:"client"` // its hash
	Sent   float64   `json:"sent"`
	Lost   float64   `json:"lost"`
	Seen   time.Time `json:"seen"`
}

func (s floorsState) check() error {
	if len(s.Key) != floorsKey || len(s.Prefixes) > maxFloors {
		return errors.New("its key or its number of prefixes is not one of ours")
	}
	for _, p := range s.Prefixes {
		if !p.Prefix.IsValid() || maps.PathPrefix(p.Prefix.Addr()) != p.Prefix {
			return fmt.Errorf("%s is no prefix that floors are kept under", p.Prefix)
		}
		if err := new(controller.FloorLearner).Restore(0, p.sources(time.Time{})); err != nil {
			return fmt.Errorf("%s %w", p.Prefix, err)
		}
	}
	return nil
}

func (p floorState) sources(begun time.Time) []controller.FloorSource {
	all := make([]controller.FloorSource, len(p.Clients))
	for i, c := range p.Clients {
		all[i] = controller.FloorSource{Source: c.Client, Sent: c.Sent, Lost: c.Lost, Updated: c.Seen.Sub(begun)}
	}
	return all
}

// SaveFloors writes the floors into dir, unless nothing is new.
func (c *Chooser) SaveFloors(dir string) error {
	f := c.floors
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.dirty || dir == "" {
		return nil
	}
	now, state := time.Since(f.begun), floorsState{Key: f.key}
	for prefix, l := range f.by {
		p := floorState{Prefix: prefix}
		for _, s := range l.Sources(now) {
			p.Clients = append(p.Clients, clientState{s.Source, s.Sent, s.Lost, f.begun.Add(s.Updated)})
		}
		if len(p.Clients) > 0 {
			state.Prefixes = append(state.Prefixes, p)
		}
	}
	slices.SortFunc(state.Prefixes, func(a, b floorState) int { return cmp.Compare(a.Prefix.String(), b.Prefix.String()) })
	if err := congestion.Keep(filepath.Join(dir, floorsFile), state); err != nil {
		return fmt.Errorf("save the loss floors of QUIC: %w", err)
	}
	f.dirty = false
	return nil
}

// LoadFloors reads what SaveFloors wrote. What connections have told since the start is of more worth.
func (c *Chooser) LoadFloors(dir string) error {
	if dir == "" {
		return nil
	}
	state, err := congestion.Kept(filepath.Join(dir, floorsFile), floorsState.check)
	if err != nil {
		return fmt.Errorf("the loss floors of QUIC are forgotten: %w", err)
	}
	f := c.floors
	f.mu.Lock()
	defer f.mu.Unlock()
	if state.Key == nil {
		return nil
	}
	f.key = state.Key
	for _, p := range state.Prefixes {
		if f.by[p.Prefix] != nil {
			continue
		}
		l := &controller.FloorLearner{}
		if err := l.Restore(time.Since(f.begun), p.sources(f.begun)); err != nil {
			return err // check has seen it
		}
		f.by[p.Prefix] = l
	}
	return nil
}
