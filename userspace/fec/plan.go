package fec

import (
	"fmt"
	"math"
)

// Path is how a network path loses packets: the share that it loses, and how many in a row on average (the model of
// Gilbert, 1960: one state that loses all, one that loses none).
type Path struct {
	Loss  float64 `json:"loss"`  // 0 to 1
	Burst float64 `json:"burst"` // 1 or more; losses without memory have 1/(1-Loss)
}

// Residual is the share of packets that a block of this shape cannot bring back on the path: exactly, by the
// distribution of losses over the block. O((k+m)^2).
func (p Path) Residual(shape Params) float64 {
	if p.Loss <= 0 {
		return 0
	}
	if p.Loss >= 1 {
		return 1
	}
	// Going on losing, and beginning to, so that both means hold.
	stay := 1 - 1/max(p.Burst, 1/(1-p.Loss))
	begin := (1 - stay) * p.Loss / (1 - p.Loss)
	turn := [2][2]float64{{1 - begin, begin}, {1 - stay, stay}} // from good, from bad; to good, to bad

	n := shape.K + shape.M
	// By state and number lost so far: the probability, and with it the mean number of packets lost.
	var chance, lost [2][MaxSymbols + 1]float64
	chance[0][0], chance[1][1], lost[1][1] = 1-p.Loss, p.Loss, p.Loss
	for i := 1; i < n; i++ {
		var c, l [2][MaxSymbols + 1]float64
		packet := 0.0
		if i < shape.K {
			packet = 1
		}
		for s := range 2 {
			for j := range i + 1 {
				c[0][j] += chance[s][j] * turn[s][0]
				l[0][j] += lost[s][j] * turn[s][0]
				c[1][j+1] += chance[s][j] * turn[s][1]
				l[1][j+1] += (lost[s][j] + packet*chance[s][j]) * turn[s][1]
			}
		}
		chance, lost = c, l
	}
	var sum float64
	for s := range 2 {
		for j := shape.M + 1; j <= n; j++ {
			sum += lost[s][j]
		}
	}
	return sum / float64(shape.K)
}

// Goal is what a plan is to reach.
type Goal struct {
	Residual float64 // share of packets that may stay lost
	Overhead float64 // packets of parity for each packet, at most
	Packets  int     // packets that a block may take without anyone waiting too long for parity
}

// Plan is a shape, and why.
type Plan struct {
	Params
	Residual float64 `json:"residual"` // expected
	Why      string  `json:"why"`
}

// mostParity is how much parity a block of k packets may have.
func mostParity(k int, overhead float64) int {
	return min(int(math.Floor(overhead*float64(k))), MaxSymbols-k)
}

// lossless is a loss below which no parity is sent: packets lost before a repair is worth its sending.
const lossless = 1e-5

// Choose finds the least parity that reaches the goal on the path, in blocks as long as may be: at equal overhead
// the longer block always repairs more. O(overhead × (k+m)^2): some milliseconds for the longest.
func Choose(p Path, g Goal) Plan {
	k := max(g.Packets, 1)
	for k > 1 && k+int(g.Overhead*float64(k)) > MaxSymbols {
		k--
	}
	most := mostParity(k, g.Overhead)
	switch {
	case p.Loss < lossless || p.Loss <= g.Residual:
		return Plan{Params{k, 0}, p.Loss, fmt.Sprintf("the path loses %.2g, no more than may stay lost", p.Loss)}
	case most == 0:
		return Plan{Params{k, 0}, p.Loss, fmt.Sprintf("%d packets a block leave no room for parity within an overhead of %.0f %%", k, 100*g.Overhead)}
	}
	residual := p.Loss
	for m := 1; m <= most; m++ {
		residual = p.Residual(Params{k, m})
		if residual <= g.Residual {
			return Plan{Params{k, m}, residual, fmt.Sprintf("the least parity that leaves %.2g of a loss of %.2g in bursts of %.1f", residual, p.Loss, p.Burst)}
		}
	}
	return Plan{Params{k, most}, residual, fmt.Sprintf("all the parity that an overhead of %.0f %% allows; %.2g stays lost", 100*g.Overhead, residual)}
}
