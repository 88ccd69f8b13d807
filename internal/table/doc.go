// Package table writes tables for people: columns stand below each other, two spaces
// apart. What programs read is JSON, which is not made here.
package table
