// Package transporttest is what every transport must pass.
package transporttest
