/* Quantizes and infers every window of windows.h, and says for each: the input, the output, the class or the score. */
#define FEDMQ_DECLARATIONS_ONLY
#include "model.c"

#include "board.h"
#include "windows.h" /* WINDOWS, and: static const int32_t features[WINDOWS][FEDMQ_INPUTS] */

static void put_all(const int8_t *bytes, int count)
{
    for (int i = 0; i < count; i++) {
        board_put((uint8_t)bytes[i]);
    }
}

int main(void)
{
    int8_t in[FEDMQ_INPUTS], out[FEDMQ_OUTPUTS];
    for (int window = 0; window < WINDOWS; window++) {
        fedmq_quantize(features[window], in);
        fedmq_infer(in, out);
#ifdef RECONSTRUCTS
        uint32_t result = (uint32_t)fedmq_score(in, out);
#else
        uint32_t result = (uint32_t)fedmq_class(out);
#endif
        put_all(in, FEDMQ_INPUTS);
        put_all(out, FEDMQ_OUTPUTS);
        for (int shift = 0; shift < 32; shift += 8) {
            board_put((uint8_t)(result >> shift));
        }
    }
    return fedmq_self_test();
}
