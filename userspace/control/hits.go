package control

import (
	"net/netip"
	"time"
)

// VerdictEvent tells a feeder what became of a verdict: whether it is still met, so that it can be
// extended or let go.
type VerdictEvent struct {
	Event string    `json:"event"` // added, hit or gone
	Time  time.Time `json:"time"`
	Verdict
	New  uint64    `json:"new"`           // packets that met it since the last look
	Last time.Time `json:"last,omitzero"` // look that saw the last of them; not set: none yet
}

// Hits compares looks at the table of verdicts.
type Hits struct {
	known map[hitKey]VerdictEvent
}

type hitKey struct {
	source netip.Addr
	vip    string
}

// Next returns what changed since the last look. The first look tells what is there.
func (h *Hits) Next(now time.Time, list []Verdict) []VerdictEvent {
	events := []VerdictEvent{}
	fresh := make(map[hitKey]VerdictEvent, len(list))
	for _, v := range list {
		key := hitKey{v.Source, v.VIP}
		old, known := h.known[key]
		e := VerdictEvent{Event: "added", Time: now, Verdict: v, New: v.Hits, Last: old.Last}
		same := known && old.Action == v.Action && old.Rule == v.Rule && old.Reason == v.Reason
		if same {
			e.Event = "hit"
			e.New -= min(old.Hits, v.Hits)
		}
		if e.New > 0 {
			e.Last = now
		}
		if !same || e.New > 0 {
			events = append(events, e)
		}
		fresh[key] = e
	}
	for key, e := range h.known {
		if _, there := fresh[key]; !there {
			e.Event, e.Time, e.New = "gone", now, 0
			events = append(events, e)
		}
	}
	h.known = fresh
	return events
}
