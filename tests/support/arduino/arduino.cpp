// Runs the example sketch in virtual time: `sketch MILLISECONDS STALL_AT_MS STALL_MS`. Serial's output is stdout, its
// input stdin, handed over after a second. Time goes on by what SPI and the line take, and micros() wraps after a
// second, too. The sensor makes a sample every 312.5 us and counts them: x is the number's
// low 15 bits, y its negative, z the low 15 bits of its square.
#include "Arduino.h"
#include "SPI.h"

#include <stdio.h>
#include <stdlib.h>

void setup();
void loop();

Line Serial;
Bus SPI;

static uint64_t clock_ns = 4294000000000ull; // micros() wraps after a second
static uint64_t started_ns;
static char input[64];
static size_t input_length, input_read;

static uint8_t registers[64];
static uint64_t taken; // samples that were read or lost
static bool overrun, data_read;
static int position = -1; // bytes since chip select; -1 while it is high
static uint8_t command;

unsigned long micros() { return (uint32_t)(clock_ns / 1000); }
unsigned long millis() { return (uint32_t)(clock_ns / 1000000); }
void delay(unsigned long ms) { clock_ns += ms * 1000000ull; }
void delayMicroseconds(unsigned us) { clock_ns += us * 1000ull; }
int analogRead(uint8_t) { return 517; }
void pinMode(uint8_t, uint8_t) {}

static uint64_t made()
{
    return registers[0x2D] & 8 ? (clock_ns - started_ns) / 312500 : 0;
}

static void lose_the_oldest()
{
    if (made() - taken > 32) {
        taken = made() - 32;
        overrun = true;
    }
}

void digitalWrite(uint8_t pin, uint8_t level)
{
    if (pin != 10) {
        return;
    }
    if (level == HIGH && data_read) {
        taken++;
        overrun = data_read = false;
    }
    position = level == LOW ? 0 : -1;
}

static uint8_t read_register(uint8_t address)
{
    if (!data_read) {
        lose_the_oldest(); // not in the middle of a sample
    }
    if (address == 0x00) {
        return 0xE5;
    }
    if (address == 0x39) {
        return (uint8_t)(made() - taken);
    }
    if (address == 0x30) {
        return overrun;
    }
    if (address >= 0x32 && address < 0x38) {
        data_read = true;
        uint16_t n = (uint16_t)(taken & 0x7FFF);
        int16_t axes[3] = {(int16_t)n, (int16_t)-n, (int16_t)((uint32_t)n * n & 0x7FFF)};
        return (uint8_t)((uint16_t)axes[(address - 0x32) / 2] >> (address % 2 ? 8 : 0));
    }
    return registers[address];
}

uint8_t Bus::transfer(uint8_t byte)
{
    clock_ns += 3000;
    if (position < 0) {
        abort(); // nobody is selected
    }
    if (position++ == 0) {
        command = byte;
        return 0;
    }
    uint8_t address = (uint8_t)((command & 0x3F) + (command & 0x40 ? position - 2 : 0));
    if (command & 0x80) {
        return read_register(address);
    }
    registers[address] = byte;
    if (address == 0x2D) {
        started_ns = clock_ns;
    }
    return 0;
}

void Line::begin(unsigned long baud)
{
    if (baud != 1000000) {
        abort();
    }
}

int Line::available() { return clock_ns > 4295000000000ull ? (int)(input_length - input_read) : 0; }
int Line::read() { return (uint8_t)input[input_read++]; }

size_t Line::write(uint8_t byte) { return write(&byte, 1); }

size_t Line::write(const uint8_t *bytes, size_t length)
{
    clock_ns += 10000 * length;
    return fwrite(bytes, 1, length, stdout);
}

int main(int, char **words)
{
    uint64_t begin = clock_ns, end = begin + strtoull(words[1], 0, 10) * 1000000;
    uint64_t stall_at = begin + strtoull(words[2], 0, 10) * 1000000, stall = strtoull(words[3], 0, 10) * 1000000;
    input_length = fread(input, 1, sizeof input, stdin);
    setup();
    while (clock_ns < end) {
        if (stall > 0 && clock_ns > stall_at) {
            clock_ns += stall;
            stall = 0;
        }
        loop();
    }
    return 0;
}
