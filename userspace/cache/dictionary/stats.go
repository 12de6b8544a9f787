package dictionary

import "sync/atomic"

// What became of answers that might have been encoded, or have become dictionaries.
const (
	resultSent       = "sent"        // encoded
	resultNotSmaller = "not_smaller" // encoded it would be no smaller
	resultUnknown    = "unknown"     // the client has a dictionary that is not known here
	resultNotFor     = "not_for"     // it has one that is for other requests
	resultMalformed  = "malformed"   // Available-Dictionary is no hash
	resultUnsuitable = "unsuitable"  // coded already, of a type that gets no smaller, or not to be transformed
	resultSize       = "size"        // too small, too large, or of unknown size
	resultBusy       = "busy"        // no memory left
	resultPrivate    = "private"     // would be a dictionary, if shared caches might keep it
	resultRefused    = "refused"     // Use-As-Dictionary is malformed, or says more than is understood
	resultCoded      = "coded"       // would be a dictionary, if it came without a content coding
	resultTooLarge   = "too_large"   // would be a dictionary, if it were smaller
)

var results = [...]string{
	resultSent, resultNotSmaller, resultUnknown, resultNotFor, resultMalformed, resultUnsuitable, resultSize, resultBusy,
	resultPrivate, resultRefused, resultCoded, resultTooLarge,
}

// Stats is a snapshot of what the stage has done and holds.
type Stats struct {
	Results  map[string]uint64 // answers by what became of them
	Learnt   uint64            // answers that became dictionaries
	Encoded  uint64            // bodies encoded; others were sent as they had been before
	Evicted  uint64            // dictionaries and encoded bodies forgotten for room
	BytesIn  uint64            // of bodies that were sent encoded, before that
	BytesOut uint64            // and as sent

	Dictionaries int
	Bytes, Limit int64
}

// counters are the live form of Stats.
type counters struct {
	results                                     [len(results)]atomic.Uint64
	learnt, encoded, evicted, bytesIn, bytesOut atomic.Uint64
}

func (c *counters) count(result string) {
	for i, r := range results {
		if r == result {
			c.results[i].Add(1)
		}
	}
}

// Stats returns a snapshot.
func (s *Stage) Stats() Stats {
	c := s.stats
	out := Stats{
		Results: map[string]uint64{}, Learnt: c.learnt.Load(), Encoded: c.encoded.Load(), Evicted: c.evicted.Load(),
		BytesIn: c.bytesIn.Load(), BytesOut: c.bytesOut.Load(), Limit: s.store.limit,
	}
	for i, r := range results {
		out.Results[r] = c.results[i].Load()
	}
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	out.Bytes = s.store.used
	for _, of := range s.store.origins {
		out.Dictionaries += len(of)
	}
	return out
}
