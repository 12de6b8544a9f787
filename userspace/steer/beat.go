package steer

import (
	"errors"
	"time"
)

// wake is for when this edge may have been away without knowing: others had its rows meanwhile, so
// that they may have flows of them. The caller holds mu.
func (c *Controller) wake() error {
	b := c.backends[c.self]
	if b == nil || c.secondChance == 0 {
		return nil
	}
	var errs []error
	for _, s := range c.sets {
		rows, err := c.maps.Rows.Read(s.id)
		if err != nil {
			return err
		}
		for i := range rows {
			if r := &rows[i]; uint32(r.Owner) == b.id && r.Second != 0 && !r.Moved {
				r.Moved, s.moved[i] = true, time.Now()
			}
		}
		errs = append(errs, c.maps.Rows.Write(s.id, rows))
	}
	return errors.Join(errs...)
}

// missed is a pause between beats in which other edges may have taken this one for dead: fewer
// than three probes a second find nobody dead sooner.
const missed = 400 * time.Millisecond

// Beat tells the kernel half that the daemon serves: it is to be called every 100 ms or so while it
// does. After a pause, flows of this edge's rows may be elsewhere, and the rows say so.
func (c *Controller) Beat() error {
	c.maps.Heart.Beat()
	c.mu.Lock()
	defer c.mu.Unlock()
	first := c.beaten.IsZero()
	pause := time.Since(c.beaten)
	c.beaten = time.Now()
	fired := c.maps.Heart.Fired()
	if c.sets == nil || pause < missed && !fired {
		return nil
	}
	if err := c.wake(); err != nil {
		return err
	}
	switch {
	case fired && first: // how long before, this process does not know
		c.log.Info("new flows went to other edges until this daemon served")
		c.maps.Heart.Clear()
	case fired:
		c.log.Warn("this daemon was silent: new flows went to other edges meanwhile", "pause", pause.Round(time.Millisecond))
		c.maps.Heart.Clear()
	}
	return nil
}
