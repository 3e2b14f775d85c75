#pragma once

#include "Arduino.h"

enum { MSBFIRST = 1, SPI_MODE3 = 3 };

struct SPISettings {
    SPISettings(uint32_t, uint8_t, uint8_t) {}
};

struct Bus {
    void begin() {}
    void beginTransaction(const SPISettings &) {}
    void endTransaction() {}
    uint8_t transfer(uint8_t byte);
};
extern Bus SPI;
