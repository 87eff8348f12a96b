%%% The contexts of the default pool. Each lives and dies by itself.
-module(py_reactor_context_sup).

-behaviour(supervisor).

%% API
-export([start_link/1]).

%% supervisor callbacks
-export([init/1]).

-spec start_link(Size :: pos_integer()) -> supervisor:startlink_ret().
start_link(Size) ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, Size).

%% @private
-spec init(pos_integer()) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init(Size) ->
    Context = fun(Index) ->
        (py_reactor_context:child_spec(#{pool_index => Index}))#{id := Index}
    end,
    %% A context that is killed now and then must not take the others along.
    Flags = #{strategy => one_for_one, intensity => 10 * Size, period => 1},
    {ok, {Flags, [Context(Index) || Index <- lists:seq(1, Size)]}}.
